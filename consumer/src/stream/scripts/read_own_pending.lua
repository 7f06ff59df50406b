local rows = redis.call('XPENDING', KEYS[1], ARGV[1], '(' .. ARGV[3], '+', ARGV[4], ARGV[2])
local entries, bytes = {}, 0
for _, row in ipairs(rows) do
    local entry = redis.call('XRANGE', KEYS[1], row[1], row[1])[1]
    entries[#entries + 1] = entry or {row[1], false}
    for _, part in ipairs(entry and entry[2] or {}) do bytes = bytes + #part end
    if bytes >= tonumber(ARGV[5]) then break end
end
return entries
