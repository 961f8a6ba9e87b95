#!lua flags=allow-oom
-- Puts a job out of the way whose record turned out to be damaged.
-- ARGV: policy, job
-- Returns nothing

quarantine(ARGV[2])
