#!lua flags=allow-oom
local bound = redis.call('HGET', KEYS[1], 'database')
if not bound or bound == ARGV[1] then
    local now = redis.call('TIME')
    local ms = string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000))
    redis.call('HSET', KEYS[1], 'bound_at', ms, unpack(ARGV, 2))
end
return redis.call('HGETALL', KEYS[1])
