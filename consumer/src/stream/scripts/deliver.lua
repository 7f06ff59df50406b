local deliveries = {}
for i = 3, #ARGV do
    local id, count = ARGV[i], 0
    local row = redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1)[1]
    -- XCLAIM would remove an entry that was deleted from the stream.
    if row and row[2] == ARGV[2] and #redis.call('XRANGE', KEYS[1], id, id) > 0 then
        count = row[4] + 1
        redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id, 'RETRYCOUNT', count, 'JUSTID')
    end
    deliveries[#deliveries + 1] = count
end
return deliveries
