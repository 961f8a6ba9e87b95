#!lua
-- Notes a batch that is being uploaded, and reserves its idempotency key.
-- ARGV: policy, batch, owner, head (JSON), lines, how many of the owner's may be unfinished,
--       idempotency key's name or '', request digest
-- Returns {'created'} | {'replayed', batch} | {'conflict'} | {'limited', 'unfinished', how many} | {'full'} |
--         {'limited', 'batches', how many are kept} | {'limited', 'kept' or 'bytes', …} as create.lua

local _, batch, owner, head, lines, at_most, reservation, digest = unpack(ARGV)

if batch_fields(batch, 'owner') then return {'created'} end
local answer, earlier = earlier_request(reservation, digest, 'batch')
if answer then return {answer, earlier} end
local open = 'lensd:batches-open:' .. owner
if redis.call('SCARD', open) >= tonumber(at_most) then
  -- A batch whose record was damaged may not have been known as its owner's when it was put out of the way.
  for _, other in ipairs(redis.call('SMEMBERS', open)) do
    local status = batch_fields(other, 'status')
    if not status or status == 'ended' or status == 'failed' then redis.call('SREM', open, other) end
  end
end
local unfinished = redis.call('SCARD', open)
if unfinished >= tonumber(at_most) then return {'limited', 'unfinished', unfinished} end
local kept = redis.call('ZCARD', 'lensd:batches:' .. owner)
if kept >= policy.max_kept_batches then return {'limited', 'batches', kept} end
local too_much = keeps_too_much(owner)
if too_much then return too_much end
if memory_is_short() then return {'full'} end

batch_set(batch, 'owner', owner, 'head', head, 'lines', lines, 'status', 'uploading', 'created_at', digits(now),
  'fence', 0, 'offset', 0, 'number', 0, 'checked', 0, 'invalid', 0, 'cost', 0, 'fed', 0, 'succeeded', 0, 'failed', 0,
  'cancelled', 0)
if reservation ~= '' then
  batch_set(batch, 'idempotency', reservation)
  redis.call('SET', reservation, batch .. ' ' .. digest)
end
redis.call('SADD', 'lensd:batches-open:' .. owner, batch)
redis.call('ZADD', 'lensd:batches-due', digits(now + policy.abandoned), batch)
return {'created'}
