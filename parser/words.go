package parser

// modernWords are the reserved words since 6.4.
var modernWords = map[string]int{
	"action": mACTION, "admd": mADMD, "alias": mALIAS, "any": mANY, "auth": mAUTH,
	"auth-optional": mAUTHOPTIONAL, "backup": mBACKUP, "bounce": mBOUNCE, "bypass": mBYPASS,
	"ca": mCA, "cert": mCERT, "chain": mCHAIN, "chroot": mCHROOT, "ciphers": mCIPHERS,
	"commit": mCOMMIT, "compression": mCOMPRESSION, "connect": mCONNECT, "data": mDATA,
	"data-line": mDATALINE, "dhe": mDHE, "disconnect": mDISCONNECT, "domain": mDOMAIN,
	"ehlo": mEHLO, "encryption": mENCRYPTION, "expand-only": mEXPANDONLY, "fcrdns": mFCRDNS,
	"filter": mFILTER, "for": mFOR, "forward-only": mFORWARDONLY, "from": mFROM,
	"group": mGROUP, "helo": mHELO, "helo-src": mHELOSRC, "host": mHOST,
	"hostname": mHOSTNAME, "hostnames": mHOSTNAMES, "include": mINCLUDE, "inet4": mINET4,
	"inet6": mINET6, "junk": mJUNK, "key": mKEY, "limit": mLIMIT, "listen": mLISTEN,
	"lmtp": mLMTP, "local": mLOCAL, "mail-from": mMAILFROM, "maildir": mMAILDIR,
	"mask-src": mMASKSRC, "masquerade": mMASQUERADE, "match": mMATCH,
	"max-deferred": mMAXDEFERRED, "max-message-size": mMAXMESSAGESIZE, "mbox": mMBOX,
	"mda": mMDA, "mta": mMTA, "mx": mMX, "no-dsn": mNODSN, "no-verify": mNOVERIFY,
	"noop": mNOOP, "on": mON, "phase": mPHASE, "pki": mPKI, "port": mPORT, "proc": mPROC,
	"proc-exec": mPROCEXEC, "protocols": mPROTOCOLS, "proxy-v2": mPROXYV2, "queue": mQUEUE,
	"quit": mQUIT, "rcpt-to": mRCPTTO, "rdns": mRDNS, "received-auth": mRECEIVEDAUTH,
	"recipient": mRECIPIENT, "regex": mREGEX, "reject": mREJECT, "relay": mRELAY,
	"report": mREPORT, "rewrite": mREWRITE, "rset": mRSET, "scheduler": mSCHEDULER,
	"senders": mSENDERS, "smtp": mSMTP, "smtp-in": mSMTPIN, "smtp-out": mSMTPOUT,
	"smtps": mSMTPS, "socket": mSOCKET, "src": mSRC, "srs": mSRS,
	"sub-addr-delim": mSUBADDRDELIM, "table": mTABLE, "tag": mTAG, "tagged": mTAGGED,
	"tls": mTLS, "tls-require": mTLSREQUIRE, "ttl": mTTL, "user": mUSER,
	"userbase": mUSERBASE, "verify": mVERIFY, "virtual": mVIRTUAL,
	"warn-interval": mWARNINTERVAL, "wrapper": mWRAPPER,
}

// modernFirst are the words that a statement can begin with.
var modernFirst = []string{"action", "admd", "bounce", "ca", "filter", "include", "listen",
	"match", "mda", "mta", "pki", "proc", "queue", "scheduler", "smtp", "srs", "table"}
