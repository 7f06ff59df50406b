#!lua flags=allow-oom
for i = 3, #ARGV do
    local tries = {ARGV[1] .. '/' .. ARGV[2]}
    for process, entries in string.gmatch(redis.call('HGET', KEYS[1], ARGV[i]) or '', '(%S+)/(%d+)') do
        if process ~= ARGV[1] then tries[#tries + 1] = process .. '/' .. entries end
    end
    redis.call('HSET', KEYS[1], ARGV[i], table.concat(tries, ' '))
end
return #ARGV - 2
