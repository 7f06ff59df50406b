#!lua flags=allow-oom
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 1, #ARGV, 2 do
    redis.call('HSET', KEYS[1], ARGV[i], string.format('%.0f', now - tonumber(ARGV[i + 1])))
end
return 1
