#!lua flags=allow-oom
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function read(record)
    return string.match(record or '', '^(%S+) (%a+) (%S*) (%d+)$')
end
local function record(token, state, assignment)
    return string.format('%s %s %s %.0f', token, state, assignment, now)
end
local function is_young(heartbeat_at)
    return now - tonumber(heartbeat_at) < tonumber(ARGV[5])
end
local token, state, assignment, heartbeat_at = read(redis.call('HGET', KEYS[1], ARGV[1]))
if token and token ~= ARGV[2] and is_young(heartbeat_at) then
    -- A record with a future time, written when the clock was ahead, would keep the name too long. It is rewritten with the
    -- current time.
    if now < tonumber(heartbeat_at) then redis.call('HSET', KEYS[1], ARGV[1], record(token, state, assignment)) end
    return {0, {}}
end
redis.call('HSET', KEYS[1], ARGV[1], record(ARGV[2], ARGV[3], ARGV[4]))
for i = 6, #ARGV, 2 do
    local _, _, _, silent_since = read(redis.call('HGET', KEYS[1], ARGV[i]))
    if silent_since == ARGV[i + 1] then redis.call('HDEL', KEYS[1], ARGV[i]) end
end
local members = {}
local records = redis.call('HGETALL', KEYS[1])
for i = 1, #records, 2 do
    token, state, assignment, heartbeat_at = read(records[i + 1])
    if token then
        local young = is_young(heartbeat_at) and 1 or 0
        members[#members + 1] = {records[i], token, state, assignment, heartbeat_at, young}
    else
        redis.call('HDEL', KEYS[1], records[i])
    end
end
return {1, members}
