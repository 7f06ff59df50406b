#!lua flags=allow-oom
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function read(record)
    local token, state, assignment, heartbeat_at = string.match(record, '^(%S+) (%a+) (%S*) (%d+)$')
    return token, state, assignment, now - tonumber(heartbeat_at or 0)
end
local function record(token, state, assignment)
    return string.format('%s %s %s %.0f', token, state, assignment, now)
end
-- A record with a future time, written by a server whose clock was ahead, would stay alive too long. It is rewritten with
-- the current time.
local own = redis.call('HGET', KEYS[1], ARGV[1])
if own then
    local token, state, assignment, age = read(own)
    if token ~= ARGV[2] and age < tonumber(ARGV[5]) then
        if age < 0 then redis.call('HSET', KEYS[1], ARGV[1], record(token, state, assignment)) end
        return {0, {}}
    end
end
redis.call('HSET', KEYS[1], ARGV[1], record(ARGV[2], ARGV[3], ARGV[4]))
local members = {}
local records = redis.call('HGETALL', KEYS[1])
for i = 1, #records, 2 do
    local token, state, assignment, age = read(records[i + 1])
    if token and age < 0 then
        redis.call('HSET', KEYS[1], records[i], record(token, state, assignment))
    end
    if not token or age >= tonumber(ARGV[6]) then
        redis.call('HDEL', KEYS[1], records[i])
    else
        members[#members + 1] = {records[i], token, state, assignment, age < tonumber(ARGV[5]) and 1 or 0}
    end
end
return {1, members}
