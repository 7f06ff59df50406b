if redis.call('EXISTS', KEYS[1]) == 0 then return {'', {}, {}} end
local rows = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[4], '+', ARGV[6])
local visited, ids, deleted = '', {}, {}
for i, row in ipairs(rows) do
    if row[3] >= tonumber(ARGV[3]) then
        if #redis.call('XRANGE', KEYS[1], row[1], row[1]) > 0 then
            ids[#ids + 1] = row[1]
        elseif row[2] == ARGV[2] then
            deleted[#deleted + 1] = row[1]
        end
    end
    if #ids + #deleted == tonumber(ARGV[5]) or i == tonumber(ARGV[6]) then
        visited = row[1]
        break
    end
end
if #ids == 0 then return {visited, {}, deleted} end
return {visited, redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], unpack(ids)), deleted}
