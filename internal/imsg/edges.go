package imsg

import "slices"

// allowed is the whole traffic law. ipc refuses to send, and drops the channel
// on receiving, a type that is not listed for its edge. Replies are not listed:
// they follow from replies. From, then to. An array, as replies: each process would
// make a map anew at its start, and ask it twice for each imsg.
var allowed = [Deliver + 1][Deliver + 1][]Type{
	Parent: {
		Keys:      {TypeConfigure, TypeApply, TypePeerLink, TypeSwitches, TypeShutdown},
		Control:   {TypeConfigure, TypeApply, TypePeerLink, TypeSwitches, TypeShutdown, TypeListenSocket},
		Lookup:    {TypeConfigure, TypeApply, TypePeerLink, TypeSwitches, TypeShutdown},
		SMTP:      {TypeConfigure, TypeApply, TypePeerLink, TypeSwitches, TypeShutdown, TypeListenSocket},
		Queue:     {TypeConfigure, TypeApply, TypePeerLink, TypeSwitches, TypeShutdown},
		Scheduler: {TypeConfigure, TypeApply, TypePeerLink, TypeSwitches, TypeShutdown},
		MTA:       {TypeConfigure, TypeApply, TypePeerLink, TypeSwitches, TypeShutdown},
		MDA:       {TypeConfigure, TypeApply, TypePeerLink, TypeSwitches, TypeShutdown},
	},
	Keys: {
		Parent: {TypeReady, TypeFatal, TypeViolation, TypePrepared, TypeApplied},
	},
	Control: {
		Parent:    {TypeReady, TypeFatal, TypeViolation, TypePrepared, TypeApplied, TypeReload, TypeSwitch, TypeStatusGet},
		Keys:      {TypeStatsGet},
		Lookup:    {TypeStatsGet, TypeTableUpdate, TypeTableQuery, TypeShow, TypeExplain},
		SMTP:      {TypeStatsGet, TypeSessionOpen, TypeShow},
		Queue:     {TypeStatsGet, TypeQueueList, TypeEnvelopeGet, TypeBodyOpen, TypeShow},
		Scheduler: {TypeStatsGet, TypeSchedGet, TypeSchedCommand},
		MTA:       {TypeStatsGet, TypeShow, TypeRouteCommand},
		MDA:       {TypeStatsGet},
	},
	Lookup: {
		Parent: {TypeReady, TypeFatal, TypeViolation, TypePrepared, TypeApplied, TypeUserQuery, TypeForwardOpen, TypeSystemAuth, TypeFilterStart, TypeTableOpen},
		MDA:    {TypeStoreCheck},
		SMTP:   {TypeTableStale, TypeTableTally},
		Keys:   {TypeSign},
	},
	SMTP: {
		Parent: {TypeReady, TypeFatal, TypeViolation, TypePrepared, TypeApplied},
		Lookup: {TypeClientLookup, TypeRcptCheck, TypeRcptMore, TypeAuthCheck, TypeSenderCheck, TypeTableQuery, TypeFilterOpen, TypeFilterAsk, TypeFilterEvents, TypeFilterLines, TypeTableChecks, TypeTableCopy, TypeGenerations},
		Queue:  {TypeReserveIDs, TypeBodyCreate, TypeBodyAbort, TypeCommitPart, TypeCommit},
		Keys:   {TypeSign},
	},
	Queue: {
		Parent:    {TypeReady, TypeFatal, TypeViolation, TypePrepared, TypeApplied},
		SMTP:      {TypeInject},
		MTA:       {TypeTransfer},
		MDA:       {TypeTransfer},
		Scheduler: {TypeScheduled, TypeGone, TypeHeld, TypeReleased, TypeRetry, TypeReleases},
	},
	Scheduler: {
		Parent: {TypeReady, TypeFatal, TypeViolation, TypePrepared, TypeApplied},
		Queue:  {TypeLoadAll, TypeAttempt, TypeExpire, TypeRemove, TypeSuspend, TypeDelayed, TypeReleases},
	},
	MTA: {
		Parent: {TypeReady, TypeFatal, TypeViolation, TypePrepared, TypeApplied},
		Lookup: {TypeDNSQuery, TypeTableQuery, TypeFilterOpen, TypeFilterEvents},
		Keys:   {TypeSign},
		Queue:  {TypeInflight, TypeResults, TypeBodyOpen, TypeHold, TypeRelease, TypeRetry},
	},
	MDA: {
		Parent:  {TypeReady, TypeFatal, TypeViolation, TypePrepared, TypeApplied, TypeDeliverStart},
		Lookup:  {TypeUserbaseQuery, TypeTableQuery},
		Queue:   {TypeInflight, TypeResults, TypeBodyOpen, TypeHold, TypeRelease},
		Deliver: {TypeDeliverRun},
	},
}

// replies says which imsg answers a request; 0: it is one way.
var replies = [...]Type{
	TypeUserQuery:     TypeUserInfo,
	TypeForwardOpen:   TypeForwardFile,
	TypeSystemAuth:    TypeAuthResult,
	TypeDeliverStart:  TypeDeliverStarted,
	TypeReload:        TypeDone,
	TypeSwitch:        TypeDone,
	TypeStatusGet:     TypeSwitches,
	TypeTableQuery:    TypeTableAnswer,
	TypeSign:          TypeSignature,
	TypeClientLookup:  TypeClientName,
	TypeRcptCheck:     TypeRcptAnswer,
	TypeRcptMore:      TypeRcptAnswer,
	TypeAuthCheck:     TypeAuthResult,
	TypeSenderCheck:   TypeTableAnswer,
	TypeReserveIDs:    TypeReservedIDs,
	TypeBodyCreate:    TypeBodyCreated,
	TypeCommit:        TypeCommitted,
	TypeInject:        TypeInjected,
	TypeBodyOpen:      TypeBody,
	TypeResults:       TypeDone,
	TypeDNSQuery:      TypeDNSAnswer,
	TypeUserbaseQuery: TypeUserInfo,
	TypeStoreCheck:    TypeStoreAnswer,
	TypeDeliverRun:    TypeDeliverResult,
	TypeStatsGet:      TypeStats,
	TypeQueueList:     TypeQueueListing,
	TypeEnvelopeGet:   TypeQueueListing,
	TypeSchedGet:      TypeSchedStates,
	TypeSchedCommand:  TypeCount,
	TypeSessionOpen:   TypeSessionOpened,
	TypeTableUpdate:   TypeDone,
	TypeShow:          TypeLines,
	TypeExplain:       TypeExplained,
	TypeRouteCommand:  TypeDone,
	TypeFilterOpen:    TypeFilterOpened,
	TypeFilterStart:   TypeFilterStarted,
	TypeTableOpen:     TypeTableOpened,
	TypeFilterAsk:     TypeFilterVerdict,
	TypeFilterLines:   TypeFilterLinesOut,
	TypeTableChecks:   TypeTableAnswers,
	TypeTableCopy:     TypeTableCopied,
	TypeTableStale:    TypeDone,
	TypeTableTally:    TypeTableTallies,
}

// carriers are the imsgs that a descriptor may come with.
var carriers = []Type{TypePeerLink, TypeListenSocket, TypeDeliverStarted, TypeDeliverRun,
	TypeBodyCreated, TypeBody, TypeSessionOpened, TypeFilterLinesOut, TypeFilterStarted, TypeTableOpened}

// MayCarry reports whether a descriptor may come with t.
func MayCarry(t Type) bool { return slices.Contains(carriers, t) }

// May reports whether from may send t to to, unasked.
func May(from, to Role, t Type) bool { return slices.Contains(permits(from, to), t) }

// ReplyOf is the type that answers t; 0: none does.
func ReplyOf(t Type) Type {
	if int(t) >= len(replies) {
		return 0
	}
	return replies[t]
}

// permits is what from may send to to, unasked.
func permits(from, to Role) []Type {
	if int(from) >= len(allowed) || int(to) >= len(allowed) {
		return nil
	}
	return allowed[from][to]
}

// Neighbours are the roles, the parent aside, that r shares a channel with.
func Neighbours(r Role) []Role {
	var n []Role
	for _, c := range Children {
		if len(permits(r, c))+len(permits(c, r)) > 0 {
			n = append(n, c)
		}
	}
	return n
}

// Connected reports whether two processes share a channel.
func Connected(a, b Role) bool { return slices.Contains(Neighbours(a), b) }
