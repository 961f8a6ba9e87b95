#!lua flags=allow-oom
-- Gives a courier messages that are due, one of each owner in turn.
-- ARGV: how many at most, length of the lease, how many of one owner may be under way
-- Returns {{message, owner, endpoint, job, attempt}, …}

local at_most, lease, share = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local claimed = {}

local function take(owner)
  local queue, held = 'lensd:deliveries:' .. owner, 'lensd:delivering:' .. owner
  redis.call('ZREMRANGEBYSCORE', held, '-inf', digits(now))
  if redis.call('ZCARD', held) >= share then return end
  local message = redis.call('ZRANGE', queue, '-inf', digits(now), 'BYSCORE', 'LIMIT', 0, 1)[1]
  if not message then return end
  local endpoint, job = unpack(redis.call('HMGET', 'lensd:delivery:' .. message, 'webhook', 'job'))
  if not endpoint or not job then
    redis.call('ZREM', queue, message)
    return
  end
  local attempt = redis.call('HINCRBY', 'lensd:delivery:' .. message, 'attempt', 1)
  redis.call('ZADD', queue, digits(now + lease), message)
  redis.call('ZADD', held, digits(now + lease), message)
  claimed[#claimed + 1] = {message, owner, endpoint, job, attempt}
end

-- Every pass takes messages or moves owners out of those that are due, so it ends.
while #claimed < at_most do
  local owners = redis.call('ZRANGE', 'lensd:deliveries', '-inf', digits(now), 'BYSCORE', 'LIMIT', 0, at_most)
  if #owners == 0 then break end
  for _, owner in ipairs(owners) do
    if #claimed < at_most then
      take(owner)
      line_up(owner, share)
    end
  end
end
return claimed
