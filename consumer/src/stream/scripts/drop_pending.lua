#!lua flags=allow-oom
if redis.call('EXISTS', KEYS[1]) == 0 then return {} end
local dropped = {}
for i = 2, #ARGV do
    redis.call('HDEL', KEYS[2], ARGV[i])
    if redis.call('XACK', KEYS[1], ARGV[1], ARGV[i]) == 1 then dropped[#dropped + 1] = ARGV[i] end
end
return dropped
