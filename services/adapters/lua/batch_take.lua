#!lua flags=allow-oom
-- Gives the batch that has waited longest to a keeper, for the time of a lease.
-- ARGV: policy
-- Returns {batch, fence, now, state}, {batch} of a record that is damaged, or false

local batch = redis.call('ZRANGE', 'lensd:batches-due', '-inf', digits(now), 'BYSCORE', 'LIMIT', 0, 1)[1]
if not batch then return false end
redis.call('ZADD', 'lensd:batches-due', digits(now + policy.keeper_lease), batch)
if not batch_fields(batch, 'owner') then return {batch} end
local fence = redis.pcall('HINCRBY', 'lensd:batch:' .. batch, 'fence', 1)
local lines = redis.pcall('LLEN', 'lensd:batch-lines:' .. batch)
local read, state = pcall(batch_state, batch)
if type(fence) ~= 'number' or type(lines) ~= 'number' or not read then return {batch} end
return {batch, fence, digits(now), state}
