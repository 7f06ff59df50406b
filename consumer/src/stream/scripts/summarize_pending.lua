if redis.call('EXISTS', KEYS[1]) == 0 then return {'', 0, 0, '', 0, '', {}} end
local last, most, most_delivered, idle, most_idle, deleted = '', 0, '', 0, '', {}
local rows = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[2], '+', ARGV[3])
for _, row in ipairs(rows) do
    last = row[1]
    if row[4] > most then most, most_delivered = row[4], row[1] end
    if row[3] > idle then idle, most_idle = row[3], row[1] end
    if #redis.call('XRANGE', KEYS[1], row[1], row[1]) == 0 then deleted[#deleted + 1] = row[1] end
end
return {last, #rows, most, most_delivered, idle, most_idle, deleted}
