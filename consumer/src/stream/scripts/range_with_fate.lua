if redis.call('EXISTS', KEYS[1]) == 0 then return {'0-0', {}, {}} end
local delivered = '0-0'
for _, fields in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local group = {}
    for i = 1, #fields, 2 do group[fields[i]] = fields[i + 1] end
    if group['name'] == ARGV[1] then delivered = group['last-delivered-id'] end
end
local entries = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[3], 'COUNT', ARGV[4])
local pending = {}
if delivered ~= '0-0' then
    for _, entry in ipairs(entries) do
        if #redis.call('XPENDING', KEYS[1], ARGV[1], entry[1], entry[1], 1) > 0 then pending[#pending + 1] = entry[1] end
    end
end
return {delivered, entries, pending}
