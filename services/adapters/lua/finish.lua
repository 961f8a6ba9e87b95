#!lua flags=allow-oom
-- Ends a job if the claim holds; says yes again to the same worker's repeated call.
-- ARGV: policy, job, worker, attempt, status, what it cost or '', then fields to set and their values: for failed 'error', JSON; for
--       succeeded 'result', JSON; where there is news of it 'done', number, 'planned', number
-- Returns whether the job has ended thus

local _, id, worker, attempt, status, bill = unpack(ARGV)
local ended, holder, latest = fields(id, 'status', 'worker', 'attempt')
if ended == status and holder == worker and latest == attempt then return true end
if not holds(id, worker, attempt) then return false end
if bill ~= '' then settle(id, bill) end
finish(id, status, unpack(ARGV, 7))
return true
