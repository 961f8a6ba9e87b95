#!lua flags=allow-oom
-- Gives the batch that has waited longest to a keeper, for the time of a lease.
-- ARGV: policy
-- Returns {batch, fence, now, state} or false

while true do
  local batch = redis.call('ZRANGE', 'lensd:batches-due', '-inf', digits(now), 'BYSCORE', 'LIMIT', 0, 1)[1]
  if not batch then return false end
  if batch_fields(batch, 'owner') then
    redis.call('ZADD', 'lensd:batches-due', digits(now + policy.keeper_lease), batch)
    local fence = redis.call('HINCRBY', 'lensd:batch:' .. batch, 'fence', 1)
    return {batch, fence, digits(now), batch_state(batch)}
  end
  redis.call('ZREM', 'lensd:batches-due', batch)
end
