package imsg

import "slices"

// edge is one direction between two processes.
type edge struct{ from, to Role }

// allowed is the whole traffic law. ipc refuses to send, and drops the channel
// on receiving, a type that is not listed for its edge. Replies are not listed:
// they follow from replies.
var allowed = map[edge][]Type{
	{Parent, Keys}:      {TypeConfigure, TypeApply, TypePeerLink, TypeSwitches, TypeShutdown},
	{Parent, Control}:   {TypeConfigure, TypeApply, TypePeerLink, TypeSwitches, TypeShutdown, TypeListenSocket},
	{Parent, Lookup}:    {TypeConfigure, TypeApply, TypePeerLink, TypeSwitches, TypeShutdown},
	{Parent, SMTP}:      {TypeConfigure, TypeApply, TypePeerLink, TypeSwitches, TypeShutdown, TypeListenSocket},
	{Parent, Queue}:     {TypeConfigure, TypeApply, TypePeerLink, TypeSwitches, TypeShutdown},
	{Parent, Scheduler}: {TypeConfigure, TypeApply, TypePeerLink, TypeSwitches, TypeShutdown},
	{Parent, MTA}:       {TypeConfigure, TypeApply, TypePeerLink, TypeSwitches, TypeShutdown},
	{Parent, MDA}:       {TypeConfigure, TypeApply, TypePeerLink, TypeSwitches, TypeShutdown},

	{Keys, Parent}:      {TypeReady, TypeFatal, TypeViolation, TypePrepared, TypeApplied},
	{Control, Parent}:   {TypeReady, TypeFatal, TypeViolation, TypePrepared, TypeApplied, TypeReload, TypeSwitch, TypeStatusGet},
	{Lookup, Parent}:    {TypeReady, TypeFatal, TypeViolation, TypePrepared, TypeApplied, TypeUserQuery, TypeForwardOpen, TypeSystemAuth, TypeFilterStart, TypeTableOpen},
	{SMTP, Parent}:      {TypeReady, TypeFatal, TypeViolation, TypePrepared, TypeApplied},
	{Queue, Parent}:     {TypeReady, TypeFatal, TypeViolation, TypePrepared, TypeApplied},
	{Scheduler, Parent}: {TypeReady, TypeFatal, TypeViolation, TypePrepared, TypeApplied},
	{MTA, Parent}:       {TypeReady, TypeFatal, TypeViolation, TypePrepared, TypeApplied},
	{MDA, Parent}:       {TypeReady, TypeFatal, TypeViolation, TypePrepared, TypeApplied, TypeDeliverStart},

	{SMTP, Lookup}: {TypeClientLookup, TypeRcptCheck, TypeRcptMore, TypeAuthCheck, TypeSenderCheck, TypeTableQuery,
		TypeFilterOpen, TypeFilterAsk, TypeFilterEvents, TypeFilterLines, TypeTableChecks, TypeTableCopy, TypeGenerations},
	{SMTP, Queue}:  {TypeReserveIDs, TypeBodyCreate, TypeBodyAbort, TypeCommitPart, TypeCommit},
	{SMTP, Keys}:   {TypeSign},
	{Queue, SMTP}:  {TypeInject},
	{MTA, Lookup}:  {TypeDNSQuery, TypeTableQuery, TypeFilterOpen, TypeFilterEvents},
	{MTA, Keys}:    {TypeSign},
	{MTA, Queue}:   {TypeInflight, TypeResults, TypeBodyOpen, TypeHold, TypeRelease, TypeRetry},
	{Queue, MTA}:   {TypeTransfer},
	{MDA, Lookup}:  {TypeUserbaseQuery, TypeTableQuery},
	{MDA, Queue}:   {TypeInflight, TypeResults, TypeBodyOpen, TypeHold, TypeRelease},
	{Queue, MDA}:   {TypeTransfer},
	{MDA, Deliver}: {TypeDeliverRun},
	{Lookup, MDA}:  {TypeStoreCheck},
	{Lookup, SMTP}: {TypeTableStale},
	{Lookup, Keys}: {TypeSign},

	{Queue, Scheduler}: {TypeScheduled, TypeGone, TypeHeld, TypeReleased, TypeRetry, TypeReleases},
	{Scheduler, Queue}: {TypeLoadAll, TypeAttempt, TypeExpire, TypeRemove, TypeSuspend, TypeDelayed, TypeReleases},

	{Control, Keys}:      {TypeStatsGet},
	{Control, Lookup}:    {TypeStatsGet, TypeTableUpdate, TypeTableQuery, TypeShow, TypeExplain},
	{Control, SMTP}:      {TypeStatsGet, TypeSessionOpen, TypeShow},
	{Control, Queue}:     {TypeStatsGet, TypeQueueList, TypeEnvelopeGet, TypeBodyOpen, TypeShow},
	{Control, Scheduler}: {TypeStatsGet, TypeSchedGet, TypeSchedCommand},
	{Control, MTA}:       {TypeStatsGet, TypeShow, TypeRouteCommand},
	{Control, MDA}:       {TypeStatsGet},
}

// replies says which imsg answers a request. A type that is not a key is one
// way.
var replies = map[Type]Type{
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
}

// carriers are the imsgs that a descriptor may come with.
var carriers = []Type{TypePeerLink, TypeListenSocket, TypeDeliverStarted, TypeDeliverRun,
	TypeBodyCreated, TypeBody, TypeSessionOpened, TypeFilterLinesOut, TypeFilterStarted, TypeTableOpened}

// MayCarry reports whether a descriptor may come with t.
func MayCarry(t Type) bool { return slices.Contains(carriers, t) }

// May reports whether from may send t to to, unasked.
func May(from, to Role, t Type) bool { return slices.Contains(allowed[edge{from, to}], t) }

// ReplyOf is the type that answers t; 0: none does.
func ReplyOf(t Type) Type { return replies[t] }

// Neighbours are the roles, the parent aside, that r shares a channel with.
func Neighbours(r Role) []Role {
	var n []Role
	for _, c := range Children {
		if _, out := allowed[edge{r, c}]; out {
			n = append(n, c)
		} else if _, in := allowed[edge{c, r}]; in {
			n = append(n, c)
		}
	}
	return n
}

// Connected reports whether two processes share a channel.
func Connected(a, b Role) bool { return slices.Contains(Neighbours(a), b) }
