#!lua flags=allow-oom
-- Forgets a job that is not running; one in line is cancelled first, for those who watch it.
-- ARGV: policy, job
-- Returns its last {field, value, …}, 'running', or false if there is no such job

local id = ARGV[2]
local status = fields(id, 'status')
if not status or status == 'running' then return status end
if status == 'queued' then finish(id, 'cancelled') end
local record = redis.call('HGETALL', 'lensd:job:' .. id)
forget(id)
return record
