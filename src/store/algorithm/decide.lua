-- Decides a batch of requests, in order, each as a whole. Twin of the frame in memory.rs.
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
local batch, position = ARGV[1], 1

-- Records what the verdict leaves of a request's hits, and puts their tallies into the reply.
local function conclude(hits, count, admitted)
  filled = filled + 1
  reply[filled] = admitted and 1 or 0
  for i = 1, count do
    local hit = hits[i]
    local log = hit.log
    if hit.refund == 1 then refund_log(log, hit.amount)
    elseif hit.amount > 0 then
      if admitted and not hit.out then record_in_log(log, hit.amount, hit.tick)
      elseif hit.count_denied == 1 then record_in_log(log, hit.amount, hit.coarse_tick) end
    end
    log.asked, log.sure = 0, 0
  end
  for i = 1, count do
    local hit = hits[i]
    local log = hit.log
    local wait = 0
    if hit.over then
      -- What the request's earlier hits asked of the counter is asked again next time, unless it is counted already.
      wait = wait_for_log(log, hit.limit, admitted and hit.need or hit.need + hit.asked_before)
    elseif log.first > 0 then wait = log.first + log.window - now end
    reply[filled + 1], reply[filled + 2], reply[filled + 3] = hit.over and 1 or 0, minus(log.after, log.base), wait
    filled = filled + 3
  end
end

while position <= #batch do
  local hits, count = {}, 0
  local descriptor_from, descriptor_over = 1, false
  local denied, quotas, quotas_fitting = false, 0, 0
  local failure, last
  repeat
    local kind, count_denied, refund, counter, limit, window, tick, coarse_tick, need, amount, _
    _, kind, count_denied, refund, last, counter, limit, window, tick, coarse_tick, need, amount, position =
      struct.unpack('>BBBBBHI7I7I7I7I7I7', batch, position)
    local log = logs[counter]
    if not log then
      local why
      log, why = load_log(KEYS[counter], window)
      logs[counter] = log
      failure = failure or why
    end
    if log then
      local used = minus(log.after, log.base) + log.sure + log.asked
      local hit = { log = log, over = used + need > limit, out = false, amount = amount, refund = refund,
        count_denied = count_denied, limit = limit, need = need, tick = tick, coarse_tick = coarse_tick,
        asked_before = log.asked }
      if refund == 1 then
        hit.over = false
        log.sure = log.sure - math.min(amount, used)
      elseif count_denied == 1 then
        if used + amount > USED_MOST then hit.amount = USED_MOST - used end
        log.sure = log.sure + hit.amount
      elseif not hit.over then
        log.asked = log.asked + amount
      end
      descriptor_over = descriptor_over or hit.over
      count = count + 1
      hits[count] = hit
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
  if failure then
    filled = filled + 1
    reply[filled] = failure
    for i = 1, count do hits[i].log.asked, hits[i].log.sure = 0, 0 end
  else
    conclude(hits, count, not denied and (quotas == 0 or quotas_fitting > 0))
  end
end

for _, log in pairs(logs) do
  if log.dirty then write_log(log) end
end
return reply
