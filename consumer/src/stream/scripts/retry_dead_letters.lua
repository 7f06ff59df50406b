local retried = {}
for i = 2, #ARGV do
    local dead_letter = redis.call('XRANGE', KEYS[2], ARGV[i], ARGV[i])[1]
    if dead_letter then
        for f = 1, #dead_letter[2], 2 do
            if dead_letter[2][f] == ARGV[1] and #dead_letter[2][f + 1] > 0 then
                redis.call('XADD', KEYS[1], '*', ARGV[1], dead_letter[2][f + 1])
                redis.call('XDEL', KEYS[2], ARGV[i])
                retried[#retried + 1] = ARGV[i]
                break
            end
        end
    end
end
return retried
