#!lua flags=allow-oom
-- Cancels queued jobs of a batch that is being cancelled, and asks the running ones to stop.
-- ARGV: policy, batch, fence, how many queued ones at most
-- Returns whether the turn is its own

local _, batch, fence, at_most = unpack(ARGV)
if not has_turn(batch, fence, 'cancelling') then return false end
local cancelled = 0
for _, id in ipairs(redis.call('SMEMBERS', 'lensd:batch-living:' .. batch)) do
  local status, asked = fields(id, 'status', 'cancel_requested')
  if status == 'queued' and cancelled < tonumber(at_most) then
    finish(id, 'cancelled')
    cancelled = cancelled + 1
  elseif status == 'running' and not asked then
    set(id, 'cancel_requested', 1)
  elseif not status then
    redis.call('SREM', 'lensd:batch-living:' .. batch, id)
  end
end
end_batch_if_done(batch)
return true
