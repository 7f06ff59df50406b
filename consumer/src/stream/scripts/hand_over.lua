if redis.call('EXISTS', KEYS[1]) == 0 then return {{}, {}} end
local reassigned, deleted = {}, {}
for i = 4, #ARGV do
    local id = ARGV[i]
    if #redis.call('XRANGE', KEYS[1], id, id) == 0 then
        deleted[#deleted + 1] = id
    else
        local claim = {'XCLAIM', KEYS[1], ARGV[1], ARGV[2], '0', id}
        if ARGV[3] ~= '' then
            claim[#claim + 1] = 'RETRYCOUNT'
            claim[#claim + 1] = ARGV[3]
        end
        claim[#claim + 1] = 'JUSTID'
        local claimed = redis.call(unpack(claim))
        if #claimed > 0 then
            reassigned[#reassigned + 1] = id
            if ARGV[3] ~= '' then redis.call('HDEL', KEYS[2], id) end
        end
    end
end
return {reassigned, deleted}
