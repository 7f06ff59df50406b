local own = redis.call('HGET', KEYS[1], ARGV[1])
if own and string.match(own, '^(%S+)') == ARGV[2] then return redis.call('HDEL', KEYS[1], ARGV[1]) end
return 0
