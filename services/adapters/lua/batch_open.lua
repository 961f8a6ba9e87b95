#!lua flags=allow-oom
-- Makes an uploaded batch known, and has it validated; a second time changes nothing.
-- ARGV: policy, batch, blob
-- Returns nothing

local _, batch, blob = unpack(ARGV)
local status, owner, created = batch_fields(batch, 'status', 'owner', 'created_at')
if status ~= 'uploading' then return end
batch_set(batch, 'status', 'validating', 'blob', blob)
redis.call('ZADD', 'lensd:batches:' .. owner, created, batch)
redis.call('ZADD', 'lensd:batches-due', digits(now), batch)
