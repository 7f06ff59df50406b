local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local members = {}
local records = redis.call('HGETALL', KEYS[1])
for i = 1, #records, 2 do
    local token, state, assignment, heartbeat_at = string.match(records[i + 1], '^(%S+) (%a+) (%S*) (%d+)$')
    if state then
        members[#members + 1] = {records[i], token, state, assignment, math.max(0, now - tonumber(heartbeat_at))}
    end
end
return members
