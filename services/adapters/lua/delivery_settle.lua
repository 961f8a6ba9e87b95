#!lua flags=allow-oom
-- Records what became of a try, if it is the latest.
-- ARGV: message, owner, attempt, microseconds until it is tried again or '', the outcome (JSON) or '', whether to
--       disable the endpoint (1 or 0), how many outcomes are kept, how many of one owner may be under way
-- Returns whether it was

local message, owner, attempt, again, outcome, disable, kept, share = unpack(ARGV)
local key, queue = 'lensd:delivery:' .. message, 'lensd:deliveries:' .. owner
local latest, endpoint = unpack(redis.call('HMGET', key, 'attempt', 'webhook'))
if latest ~= attempt then return false end

redis.call('ZREM', 'lensd:delivering:' .. owner, message)
if again == '' then
  redis.call('ZREM', queue, message)
  redis.call('DEL', key)
else
  redis.call('ZADD', queue, digits(now + again), message)
end
local place = 'lensd:webhook:' .. endpoint
if redis.call('EXISTS', place) == 1 then
  if outcome ~= '' then
    redis.call('LPUSH', 'lensd:outcomes:' .. endpoint, outcome)
    redis.call('LTRIM', 'lensd:outcomes:' .. endpoint, 0, kept - 1)
  end
  if disable == '1' then redis.call('HSETNX', place, 'disabled_at', digits(now)) end
end
line_up(owner, tonumber(share))
return true
