local now = redis.call('TIME')
local values = {
    'now_ms', string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000)),
}
local function add(name, value)
    if value then
        values[#values + 1] = name
        values[#values + 1] = value
    end
end
if redis.call('EXISTS', KEYS[1]) == 0 then return values end
local stream = redis.call('XINFO', 'STREAM', KEYS[1])
for i = 1, #stream, 2 do
    local name = stream[i]
    if name == 'length' or name == 'last-generated-id' or name == 'entries-added' or name == 'max-deleted-entry-id' then add(stream[i], stream[i + 1]) end
    if name == 'last-entry' and stream[i + 1] then add('last-id', stream[i + 1][1]) end
end
for _, fields in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local group = {}
    for i = 1, #fields, 2 do group[fields[i]] = fields[i + 1] end
    if group['name'] == ARGV[1] then
        add('pending', group['pending'])
        add('lag', group['lag'])
        add('last-delivered-id', group['last-delivered-id'])
        local oldest = redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1)[1]
        if oldest then
            add('oldest-pending-id', oldest[1])
            add('oldest-pending-idle-ms', oldest[3])
        end
        local undelivered = {}
        -- XRANGE refuses to start after the largest id.
        if group['last-delivered-id'] ~= '18446744073709551615-18446744073709551615' then
            undelivered = redis.call('XRANGE', KEYS[1], '(' .. group['last-delivered-id'], '+', 'COUNT', ARGV[2])
        end
        if undelivered[1] then add('oldest-undelivered-id', undelivered[1][1]) end
        add('undelivered', #undelivered)
    end
end
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if first then add('first-id', first[1]) end
if ARGV[3] ~= '' then add('seen', #redis.call('XRANGE', KEYS[1], ARGV[3], ARGV[3])) end
return values
