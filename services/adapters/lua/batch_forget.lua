#!lua flags=allow-oom
-- Forgets a batch.
-- ARGV: policy, batch, then the status in which alone that is wanted
-- Returns nothing

local _, batch, only = unpack(ARGV)
if not only or batch_fields(batch, 'status') == only then forget_batch(batch) end
