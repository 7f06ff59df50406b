local most, bytes_most, step = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local entries, bytes = {}, 0
while #entries < most and bytes < bytes_most do
    local count = math.min(step, most - #entries)
    local streams = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', count, 'STREAMS', KEYS[1], '>')
    local rows = streams and streams[1][2] or {}
    for _, row in ipairs(rows) do
        entries[#entries + 1] = row
        for _, part in ipairs(row[2]) do bytes = bytes + #part end
    end
    if #rows < count then break end
end
return entries
