#!lua flags=allow-oom
if redis.call('HGET', KEYS[1], 'database') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
return 1
