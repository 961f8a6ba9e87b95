#!lua flags=allow-oom
-- Forgets jobs of a batch that is to be forgotten; one that has not ended is left for its own expiry.
-- ARGV: policy, then jobs
-- Returns nothing

for i = 2, #ARGV do
  local status = fields(ARGV[i], 'status')
  if status and status ~= 'queued' and status ~= 'running' then forget(ARGV[i]) end
end
