local record = redis.call('HGET', KEYS[1], ARGV[1])
if not record then return 1 end
if string.match(record, ' (%d+)$') ~= ARGV[2] then return 0 end
return redis.call('HDEL', KEYS[1], ARGV[1])
