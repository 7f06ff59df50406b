#!lua flags=allow-oom
local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1)
if #pending == 0 then return 0 end
local now = redis.call('TIME')
local dead_at = string.format('%d', now[1] * 1000 + math.floor(now[2] / 1000))
local at = 5
for dead_letter = 1, tonumber(ARGV[4]) do
    local fields = {}
    local last = at + tonumber(ARGV[at])
    for i = at + 1, last do fields[#fields + 1] = ARGV[i] end
    at = last + 1
    redis.call('XADD', KEYS[2], '*', 'origin', KEYS[1] .. '/' .. ARGV[2], 'deliveries', pending[1][4],
        'consumer', ARGV[3], 'dead_at', dead_at, unpack(fields))
end
return redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
