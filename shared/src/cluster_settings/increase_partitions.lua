local now = redis.call('HGET', KEYS[1], 'partitions')
if now ~= ARGV[1] then return 0 end
local before = redis.call('HGET', KEYS[1], 'grown_from')
redis.call('HSET', KEYS[1], 'partitions', ARGV[2], 'grown_from', before and (before .. ',' .. now) or now)
return 1
