#!lua flags=allow-oom
local records = redis.call('HGETALL', KEYS[2])
for i = 1, #records, 2 do
    local others = {}
    for process, entries in string.gmatch(records[i + 1], '(%S+)/(%d+)') do
        if process ~= ARGV[2] then others[#others + 1] = process .. '/' .. entries end
    end
    local pending = {}
    if #others > 0 then
        -- An error means that the stream or the group is missing.
        pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], records[i], records[i], 1)
    end
    if pending.err or #pending == 0 then
        redis.call('HDEL', KEYS[2], records[i])
    else
        redis.call('HSET', KEYS[2], records[i], table.concat(others, ' '))
    end
end
return 1
