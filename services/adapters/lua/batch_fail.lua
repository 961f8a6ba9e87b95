#!lua flags=allow-oom
-- Ends a batch of which nothing is to run.
-- ARGV: policy, batch, fence, why (JSON)
-- Returns whether the turn is its own

local _, batch, fence, why = unpack(ARGV)
if has_turn(batch, fence, 'failed') then return true end
if not has_turn(batch, fence, 'validating') then return false end
local lines, invalid = batch_fields(batch, 'lines', 'invalid')
end_batch(batch, 'failed', 'error', why, 'cancelled', lines - invalid)
return true
