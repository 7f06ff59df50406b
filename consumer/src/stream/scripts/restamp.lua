if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local member = {}
for i = 4, #ARGV do member[ARGV[i]] = true end
for _, fields in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
    local consumer = {}
    for i = 1, #fields, 2 do consumer[fields[i]] = fields[i + 1] end
    if consumer.idle == 0 and not member[consumer.name] then
        -- Reads nothing: no id is greater.
        local last = '18446744073709551615-18446744073709551614'
        redis.call('XREADGROUP', 'GROUP', ARGV[1], consumer.name, 'COUNT', 1, 'STREAMS', KEYS[1], last)
    end
end
local restamped = 0
for _, row in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[2], '+', ARGV[3])) do
    -- XCLAIM would remove an entry that was deleted from the stream.
    if row[3] == 0 and #redis.call('XRANGE', KEYS[1], row[1], row[1]) > 0 then
        redis.call('XCLAIM', KEYS[1], ARGV[1], row[2], 0, row[1], 'JUSTID')
        restamped = restamped + 1
    end
end
return restamped
