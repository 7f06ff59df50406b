local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local members = {}
local records = redis.call('HGETALL', KEYS[1])
for i = 1, #records, 2 do
    local token, state, assignment, heartbeat_at = string.match(records[i + 1], '^(%S+) (%a+) (%S*) (%d+)$')
    if token then
        members[#members + 1] = {records[i], token, state, assignment, heartbeat_at, now}
    end
end
return members
