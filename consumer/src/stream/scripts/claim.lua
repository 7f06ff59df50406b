if redis.call('EXISTS', KEYS[1]) == 0 then return {'', {}, {}} end
local rows = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[4], '+', ARGV[6])
local visited, claimed, deleted, bytes = '', {}, {}, 0
for i, row in ipairs(rows) do
    if row[3] >= tonumber(ARGV[3]) then
        local entry = redis.call('XRANGE', KEYS[1], row[1], row[1])[1]
        if entry then
            redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], row[1], 'JUSTID')
            claimed[#claimed + 1] = entry
            for _, part in ipairs(entry[2]) do bytes = bytes + #part end
        elseif row[2] == ARGV[2] then
            deleted[#deleted + 1] = row[1]
        end
    end
    if #claimed + #deleted == tonumber(ARGV[5]) or bytes >= tonumber(ARGV[7]) or i == tonumber(ARGV[6]) then
        visited = row[1]
        break
    end
end
return {visited, claimed, deleted}
