#!lua flags=allow-oom
-- Stops a batch that has not ended: it ends when its last living job does.
-- ARGV: policy, batch, then for a keeper that stops it: fence, why (JSON)
-- Returns whether the turn, if one was named, is its own

local _, batch, fence, why = unpack(ARGV)
if fence and not has_turn(batch, fence, 'running') then return false end
local status = batch_fields(batch, 'status')
if status == 'validating' or status == 'running' then
  batch_set(batch, 'status', 'cancelling')
  if why then batch_set(batch, 'error', why) end
  redis.call('ZADD', 'lensd:batches-due', digits(now), batch)
  end_batch_if_done(batch)
end
return true
