#!lua flags=allow-oom
-- Reads batches.
-- ARGV: policy, then batches
-- Returns the state of each, or false

local states = {}
for i = 2, #ARGV do states[#states + 1] = batch_state(ARGV[i]) end
return states
