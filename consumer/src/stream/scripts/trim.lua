if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local function parts(id) return string.match(id, '^(%d+)-(%d+)$') end
local function padded(id)
    local ms, seq = parts(id)
    return string.rep('0', 20 - #ms) .. ms .. string.rep('0', 20 - #seq) .. seq
end
local function after(id)
    local ms, seq = parts(id)
    if #seq > 15 then return id end
    return ms .. '-' .. string.format('%.0f', tonumber(seq) + 1)
end
local keep_from = nil
local function keep(id)
    if not keep_from or padded(id) < padded(keep_from) then keep_from = id end
end
for _, fields in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local group = {}
    for i = 1, #fields, 2 do group[fields[i]] = fields[i + 1] end
    local smallest_pending = redis.call('XPENDING', KEYS[1], group['name'])[2]
    if smallest_pending then keep(smallest_pending) end
    keep(after(group['last-delivered-id']))
end
if not keep_from then return 0 end
if tonumber(ARGV[1]) > 0 then
    local now = redis.call('TIME')
    keep(string.format('%.0f-0', math.max(0, now[1] * 1000 + math.floor(now[2] / 1000) - tonumber(ARGV[1]))))
end
return redis.call('XTRIM', KEYS[1], 'MINID', '=', keep_from)
