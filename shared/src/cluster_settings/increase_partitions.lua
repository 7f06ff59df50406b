local recorded = redis.call('HGET', KEYS[1], 'partitions')
if recorded ~= ARGV[1] then return 0 end
local earlier = redis.call('HGET', KEYS[1], 'grown_from')
redis.call('HSET', KEYS[1], 'partitions', ARGV[2], 'grown_from', earlier and (earlier .. ',' .. recorded) or recorded)
return 1
