if redis.call('EXISTS', KEYS[1]) == 0 then return {'', {}, {}} end
local member = {}
for i = 7, #ARGV do member[ARGV[i]] = true end
for _, fields in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
    local consumer = {}
    for i = 1, #fields, 2 do consumer[fields[i]] = fields[i + 1] end
    local has_departed = not member[consumer.name] and consumer.idle >= tonumber(ARGV[3])
    if has_departed or consumer.name == ARGV[5] then
        if consumer.pending > 0 then
            local claimed, deleted, bytes = {}, {}, 0
            for _, row in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', ARGV[4], consumer.name)) do
                local entry = redis.call('XRANGE', KEYS[1], row[1], row[1])[1]
                if not entry then
                    deleted[#deleted + 1] = row[1]
                elseif bytes < tonumber(ARGV[6]) then
                    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, row[1], 'JUSTID')
                    claimed[#claimed + 1] = entry
                    for _, part in ipairs(entry[2]) do bytes = bytes + #part end
                end
            end
            return {consumer.name, claimed, deleted}
        elseif has_departed then
            redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
        end
    end
end
return {'', {}, {}}
