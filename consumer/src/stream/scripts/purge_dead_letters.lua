local purged = {}
for _, id in ipairs(ARGV) do
    if redis.call('XDEL', KEYS[1], id) == 1 then purged[#purged + 1] = id end
end
return purged
