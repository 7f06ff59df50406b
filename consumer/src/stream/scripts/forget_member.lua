local record = redis.call('HGET', KEYS[1], ARGV[1])
if not record then return 1 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local heartbeat_at = string.match(record, ' (%d+)$')
if heartbeat_at and now - tonumber(heartbeat_at) < tonumber(ARGV[2]) then return 0 end
return redis.call('HDEL', KEYS[1], ARGV[1])
