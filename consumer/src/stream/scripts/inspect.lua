local now = redis.call('TIME')
local seen = {
    'now_ms', string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000)),
    'dead', redis.call('XLEN', KEYS[2]),
}
local function see(name, value)
    if value then
        seen[#seen + 1] = name
        seen[#seen + 1] = value
    end
end
if redis.call('EXISTS', KEYS[1]) == 0 then return seen end
local stream = redis.call('XINFO', 'STREAM', KEYS[1])
for i = 1, #stream, 2 do
    local name = stream[i]
    if name == 'length' or name == 'last-generated-id' or name == 'entries-added' then see(stream[i], stream[i + 1]) end
end
for _, fields in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local group = {}
    for i = 1, #fields, 2 do group[fields[i]] = fields[i + 1] end
    if group['name'] == ARGV[1] then
        see('pending', group['pending'])
        see('lag', group['lag'])
        see('last-delivered-id', group['last-delivered-id'])
        local oldest = redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1)[1]
        if oldest then
            see('oldest-pending-id', oldest[1])
            see('oldest-pending-idle-ms', oldest[3])
        end
        local waiting = redis.call('XRANGE', KEYS[1], '(' .. group['last-delivered-id'], '+', 'COUNT', ARGV[2])
        if waiting[1] then see('oldest-undelivered-id', waiting[1][1]) end
        see('waiting', #waiting)
    end
end
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if first then see('first-id', first[1]) end
return seen
