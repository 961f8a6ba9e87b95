#!lua flags=allow-oom
-- Cancels a queued job, asks a running one to stop, leaves an ended one alone.
-- ARGV: policy, job
-- Returns the job's status before, or false if there is no such job

local id = ARGV[2]
local status = fields(id, 'status')
if status == 'queued' then
  finish(id, 'cancelled')
elseif status == 'running' then
  set(id, 'cancel_requested', 1)
end
return status
