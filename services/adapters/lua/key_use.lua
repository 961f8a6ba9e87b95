#!lua flags=allow-oom
-- Takes one request from a live key's allowance, a token bucket kept as the time at which it is full again (GCRA).
-- ARGV: id, SHA-256 of the secret, the gateway's time as 2030-01-31T23:59:59, default requests a second, default burst
-- Returns false if no such key lives, else {key (JSON), whether it is allowed, requests left, microseconds until the
-- allowance is full, microseconds until a request is allowed, requests a second, burst}

local USED_EVERY = 60

local id, secret, today, per_second, burst = unpack(ARGV)
local stored = redis.call('HGET', 'lensd:keys', id)
if not stored then return false end
local key = cjson.decode(stored)

local function given(value) return value ~= nil and value ~= cjson.null and value end

local function past(moment) return given(moment) and string.sub(moment, 1, 19) < today end

local retiring = given(key.retiring)
local opens = key.secret_sha256 == secret
  or (retiring and retiring.secret_sha256 == secret and not past(retiring['until']))
if not opens or past(key.expires_at) then return false end

local limits = given(key.limits) or {}
per_second = given(limits.requests_per_second) or tonumber(per_second)
burst = given(limits.burst) or tonumber(burst)

local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local bucket = 'lensd:rate:' .. id
local one = 1000000 / per_second
local full_at = math.max(now, tonumber(redis.call('GET', bucket) or 0)) + one
local short = full_at - now - burst * one
local allowed = short <= 0
if allowed then
  redis.call('SET', bucket, string.format('%.0f', full_at), 'PX', math.ceil((full_at - now) / 1000) + 1)
else
  full_at = full_at - one
end

local seconds = tonumber(clock[1])
if seconds - tonumber(redis.call('HGET', 'lensd:keys:used', id) or 0) >= USED_EVERY then
  redis.call('HSET', 'lensd:keys:used', id, seconds)
end
local left = math.max(0, math.floor((burst * one - (full_at - now)) / one + 1e-6))
return {stored, allowed and 1 or 0, left, math.ceil(full_at - now), math.ceil(math.max(0, short)), tostring(per_second),
  burst}
