-- Decides a batch of requests, in order, each as a whole. Twin of decide.rs.
--
-- KEYS     the batch's counters, each once.
-- ARGV[1]  the batch's hits, back to back. Big-endian, a byte each where not said otherwise:
--            algorithm      1: sliding_window_log
--            kind           0 enforce, 1 shadow, 2 quota, 3 quota in shadow
--            count_denied   1: recorded although denied
--            refund         1: given back instead of taken
--            last           0: more hits of this descriptor follow; 1: the descriptor ends; 2: the request ends
--            counter        2 bytes: its place in KEYS
--          and for a log, 7 bytes each: limit, window, tick, coarse tick (all times in us), need (what must fit),
--          amount (what is recorded or given back).
-- Reply    flat: for each request 1 (admitted) or 0, then for each of its hits: over (1 or 0), the hits used after the
--          request, and the wait in us (-1: never). A request that can't be decided: its error text alone.
local reply, filled = {}, 0
local logs = {}
local hits = {} -- of one request; its tables serve the next one again
local batch, position = ARGV[1], 1

-- Puts a hit's tally into the reply: what its log is like after the request, and how long until `need` fits or, where
-- it fitted, until the oldest hits leave.
local function tally(log, over, limit, need)
  local used, wait = log.after - log.base, 0
  if used < 0 then used = used + TOTALS end
  if over then wait = wait_for_log(log, used, limit, need)
  elseif log.first > 0 then wait = log.first + log.window - now end
  local at = filled
  reply[at + 1] = over and 1 or 0
  reply[at + 2] = used
  reply[at + 3] = wait
  filled = at + 3
end

-- Records what the verdict leaves of a request's hits, and only then tallies them.
local function conclude(count, admitted)
  filled = filled + 1
  reply[filled] = admitted and 1 or 0
  for i = 1, count do
    local hit = hits[i]
    local log = hit.log
    if hit.refund == 1 then refund_log(log, hit.amount)
    elseif hit.amount > 0 then
      if admitted and not hit.out then record_in_log(log, hit.amount, hit.tick)
      elseif hit.count_denied == 1 then charge_to_log(log, hit.amount, hit.coarse_tick) end
    end
    log.asked, log.sure = 0, 0
  end
  for i = 1, count do
    local hit = hits[i]
    -- What the request's earlier hits asked of the counter is asked again next time, unless it is counted already.
    tally(hit.log, hit.over, hit.limit, admitted and hit.need or hit.need + hit.asked_before)
  end
end

while position <= #batch do
  local count = 0
  local descriptor_from, descriptor_over = 1, false
  local denied, quotas, quotas_fitting = false, 0, 0
  local failure, last
  local alone = false
  repeat
    local kind, count_denied, refund, counter, limit, window, tick, coarse_tick, need, amount, _
    _, kind, count_denied, refund, last, counter, limit, window, tick, coarse_tick, need, amount, position =
      unpack('>BBBBBHI7I7I7I7I7I7', batch, position)
    local log = logs[counter]
    if not log then
      local why
      log, why = load_log(KEYS[counter], window)
      logs[counter] = log
      failure = failure or why
    end
    if not log then
      -- The rest of the request is read, and not decided.
    elseif last == 2 and count == 0 and refund == 0 and not failure then
      -- One hit is the whole request: the common case, decided without a table for it.
      local used = log.after - log.base
      if used < 0 then used = used + TOTALS end
      local over = used + need > limit
      filled = filled + 1
      reply[filled] = (not over or kind % 2 == 1) and 1 or 0
      if not over then
        if amount > 0 then record_in_log(log, amount, tick) end
      elseif count_denied == 1 and amount > 0 then charge_to_log(log, amount, coarse_tick) end
      tally(log, over, limit, need)
      alone = true
      break
    else
      local used = minus(log.after, log.base) + log.sure + log.asked
      count = count + 1
      local hit = hits[count]
      if not hit then
        hit = {}
        hits[count] = hit
      end
      hit.log, hit.over, hit.out, hit.amount, hit.refund = log, used + need > limit, false, amount, refund
      hit.count_denied, hit.limit, hit.need, hit.asked_before = count_denied, limit, need, log.asked
      hit.tick, hit.coarse_tick = tick, coarse_tick
      if refund == 1 then
        hit.over = false
        log.sure = log.sure - math.min(amount, used)
      elseif count_denied == 1 then
        log.sure = log.sure + math.min(amount, math.max(USED_MOST - used, 0))
      elseif not hit.over then
        log.asked = log.asked + amount
      end
      descriptor_over = descriptor_over or hit.over
    end
    if last > 0 then
      if descriptor_over then
        -- Of a descriptor that is over, nothing is recorded but its count_denied hits.
        for i = descriptor_from, count do
          local hit = hits[i]
          hit.out = true
          if not hit.over and hit.refund == 0 and hit.count_denied == 0 then hit.log.asked = hit.log.asked - hit.amount end
        end
        denied = denied or kind == 0
      end
      if kind >= 2 then
        quotas = quotas + 1
        if not descriptor_over or kind == 3 then quotas_fitting = quotas_fitting + 1 end
      end
      descriptor_from, descriptor_over = count + 1, false
    end
  until last == 2
  if alone then
    -- Concluded already.
  elseif failure then
    filled = filled + 1
    reply[filled] = failure
    for i = 1, count do hits[i].log.asked, hits[i].log.sure = 0, 0 end
  else
    conclude(count, not denied and (quotas == 0 or quotas_fitting > 0))
  end
end

for _, log in pairs(logs) do
  if log.dirty then write_log(log) end
end
return reply
