#!lua flags=allow-oom
-- Extends the leases of claims that hold.
-- ARGV: policy, then for each claim: job, worker, attempt
-- Returns for each claim: 'lost', 'held', or why to stop: 'cancelled', 'deadline'

local beats = {}
for i = 2, #ARGV, 3 do
  local id, worker, attempt = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local beat = 'lost'
  -- A record that cannot be read is lost to its worker, but must not cost the others their leases.
  local sound, held = pcall(holds, id, worker, attempt)
  if sound and held then
    local cancel, deadline = fields(id, 'cancel_requested', 'deadline_at')
    beat = cancel and 'cancelled' or passed(deadline) and 'deadline' or 'held'
  end
  beats[#beats + 1] = beat
end
return beats
